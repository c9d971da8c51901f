"""What each engine family speaks: pure codecs between bytes and values."""

"""Building blocks without domain words."""

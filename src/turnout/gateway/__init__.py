"""Drives exchanges: from a complete request on a client connection to the last byte of its answer."""

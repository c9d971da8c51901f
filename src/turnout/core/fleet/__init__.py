"""The endpoints we know, how loaded they are, and whether they may be used."""

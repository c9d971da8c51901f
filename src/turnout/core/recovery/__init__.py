"""What follows a failure that a retry alone cannot mend: rescue of a broken stream, hedging, the poison fence."""

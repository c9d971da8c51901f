"""Our own stored answers: when one may be replayed, to whom, and why never to anyone else."""

"""One file per verb of the command line; `main` finds the verb and imports nothing for the others."""

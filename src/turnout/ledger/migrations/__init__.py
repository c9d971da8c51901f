"""The one linear history of the schema. A revision is frozen once released; changes within a minor version only add."""

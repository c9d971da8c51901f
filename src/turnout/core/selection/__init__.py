"""Which model serves a request that asks for `auto`: a fitted bundle's blend of quality, cost and speed."""

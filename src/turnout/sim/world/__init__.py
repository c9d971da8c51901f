"""A whole fleet on virtual time: the live core (exchange, fleet, admission) driven by simulated clients and engines."""

"""From a rule to a graph."""

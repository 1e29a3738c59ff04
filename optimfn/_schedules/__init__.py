"""Pure functions from a step count to a value, one idea a file."""

"""From a plan to steps."""

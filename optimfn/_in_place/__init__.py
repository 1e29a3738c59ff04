"""A step of the rule itself that writes over what it is given, all or nothing, and without all new values at once."""

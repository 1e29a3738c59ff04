"""Building blocks: transformations with one idea each."""

"""Looking at what a transformation is and does."""

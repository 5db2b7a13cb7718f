"""The reference: its frozen adapter, and what it said of a data set, kept."""

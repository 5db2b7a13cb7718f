"""From raw rows to rows that can train: formats, what is dropped, instructions mixed in."""

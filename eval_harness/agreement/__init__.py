"""How far evaluation methods agree, and which can be trusted: the statistics. Pure; nothing is run or fetched here."""

"""The methods, one folder a paper: torch alone, each equation one function with its number above it."""

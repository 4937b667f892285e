"""What portraits are judged by, a module for each library."""

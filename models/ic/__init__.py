"""IC-Portrait's nets, their file, and the handle that nodes pass on."""

"""Released checkpoint layouts, converted to the names of our modules and back with every key accounted for."""

"""Facts of recorded episodes, and faults in them."""

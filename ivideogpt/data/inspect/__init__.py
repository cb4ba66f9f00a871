"""What recorded episodes hold, and what is wrong with them."""

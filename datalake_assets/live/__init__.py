"""SPEED: the present of feeds in memory, and a page that shows it; rows get there by the pass that lands them."""

"""A web shop's data: orders, products, revenue, and the clicks that a tracker of others writes."""

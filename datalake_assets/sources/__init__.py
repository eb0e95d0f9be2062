"""READ: one folder per system that rows come from, behind one Protocol (``base``); ``systems`` lists them."""

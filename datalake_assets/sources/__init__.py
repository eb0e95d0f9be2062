"""READ: one module per system that rows come from, behind one Protocol (``base``)."""

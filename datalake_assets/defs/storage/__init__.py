"""What assets store in the lake and take out of it: the IO manager, what it lands, what it loads, as which feed."""

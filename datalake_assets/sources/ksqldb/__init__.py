"""All that is known of ksqlDB: its REST interface, its types, how its rows become Arrow."""

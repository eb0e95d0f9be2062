"""All that is known of Apache Kafka: its topics and their offsets, the schema registry, how messages become Arrow."""

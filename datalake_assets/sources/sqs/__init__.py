"""All that is known of Amazon SQS: its queues, how messages are taken and given back, how bodies become Arrow."""

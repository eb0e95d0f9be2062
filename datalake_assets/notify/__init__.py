"""Messages to people: what failed, what needs attention, what is well again."""

"""From checked settings to programs and members, with the counts of every event."""

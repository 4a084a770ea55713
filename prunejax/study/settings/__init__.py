"""What a study is asked for: config, arms, and checks that need neither model nor data."""

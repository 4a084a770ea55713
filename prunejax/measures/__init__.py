"""What is measured on a trained network, and the statistics that relate it to accuracy."""

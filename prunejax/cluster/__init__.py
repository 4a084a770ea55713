"""Several devices and processes: the mesh, how processes meet, what they tell each other."""

"""How a model is spread over devices: the mesh, its collectives, and layers written once against it."""

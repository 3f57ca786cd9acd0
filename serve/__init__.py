"""HTTP over a Recommender: the contract, a lean ASGI application, and the Ray Serve deployment that runs it."""

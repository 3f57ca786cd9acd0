"""How good are recommendations: metrics, baselines to beat, full ranking over a held-out part, and the report."""

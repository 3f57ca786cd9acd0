"""The two towers: features, history encoder, losses and the LightningModule that wires them."""

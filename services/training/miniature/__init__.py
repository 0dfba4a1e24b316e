"""The paper's experiment in small: the base model against its tuned text tower, on buildings."""

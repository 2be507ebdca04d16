"""What people look at: evaluation step by step, TensorBoard, figures."""

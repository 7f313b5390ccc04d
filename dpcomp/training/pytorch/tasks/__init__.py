"""What the PyTorch trainer does with a task: reads its examples, tries its model and loss, and measures metrics."""

"""What is measured in reconstructions and samples."""

"""Error lines and logs of VMMs and kernels: what they show, and what it means for nested SVM."""

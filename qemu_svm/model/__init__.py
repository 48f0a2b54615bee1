"""An executable model of KVM's side of a restore; it opens no file."""

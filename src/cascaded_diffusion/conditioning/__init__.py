"""What happens to the low-resolution image on its way into a super-resolution stage."""

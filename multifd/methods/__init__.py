"""The methods that come with multifd; registered and loaded like anyone's."""

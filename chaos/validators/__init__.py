"""What is checked of a history, a module for each noun. All see plain data, and nothing of the cluster.

numbers     P3: given once, rising
contents    attributes and data of images in the end
retries     P4: once, however often it was asked
sessions    P7: own writes are seen, and nothing goes back
privacy     P8: other tenants see what is shared with them
offline     P6: a zone that is cut off answers
feeds       changes come in order, all, once, and as filtered
staleness   nothing is called fresher than it is
peers       all copies of the state are equal
"""

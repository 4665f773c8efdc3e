"""What a weight is: its card, where weights are found, how their files are read and written safely.

`registry` finds weights, `files` reads and writes their files, `legacy` reads published `.pth` files,
`published` lists where those are, and `downloads` fetches them: nothing else here uses the network.
"""

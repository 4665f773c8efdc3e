"""What a weight is: its card, where weights are found, how their files are read and written safely.

`registry` finds weights, `storage` reads and writes their files, `legacy` reads published `.pth` files,
`published` says where those are, and `download` fetches them: nothing else here touches the network.
"""

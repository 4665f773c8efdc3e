// Lists that grow as the reader comes to their end.

/** Fetch the rest of a list as its end comes into view. `onMore` is called after tiles were added. */
export function growing(list, onMore = () => {}) {
  const seen = new IntersectionObserver(
    (entries) => entries.forEach((entry) => entry.isIntersecting && grow(entry.target)),
    { rootMargin: "800px" },
  );
  const watch = () => {
    const end = list.querySelector(":scope > .more");
    if (!end) return;
    end.querySelector("button").addEventListener("click", () => grow(end));
    seen.observe(end);
  };
  const grow = async (end) => {
    if (end.dataset.isLoading) return;
    end.dataset.isLoading = "yes";
    const address = new URL(list.dataset.more, location.href);
    address.searchParams.set("offset", end.dataset.offset);
    const response = await fetch(address, { headers: { Accept: "text/html" } }).catch(() => null);
    if (!response?.ok) {
      delete end.dataset.isLoading;
      return;
    }
    seen.unobserve(end);
    const parsed = new DOMParser().parseFromString(`<ul>${await response.text()}</ul>`, "text/html");
    const fresh = [...parsed.querySelector("ul").children];
    end.replaceWith(...fresh.filter((tile) => !tile.id || !document.getElementById(tile.id)));
    watch();
    onMore();
  };
  watch();
}

for (const list of document.querySelectorAll("[data-tiles]")) growing(list);

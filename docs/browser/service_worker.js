// The network first, so that nothing is ever old; what page.js has kept where there is none.
self.addEventListener('fetch', (event) => {
  event.respondWith(
    fetch(event.request).catch(async (error) => {
      const kept = await caches.match(event.request, {ignoreSearch: true});
      if (kept) return kept;
      throw error;
    }));
});
self.addEventListener('activate', (event) => event.waitUntil(self.clients.claim()));
